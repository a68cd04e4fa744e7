"""What `--gpu` measures: training steps of full-size models, and builds, on this machine's device."""
