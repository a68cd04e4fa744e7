"""What `--gpu` measures: full-size models' training steps, and builds, on this device."""
