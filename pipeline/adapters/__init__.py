"""Outside models behind the protocols of `pipeline.parts`, one file each; torch comes late."""
