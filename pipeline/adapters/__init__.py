"""Outside models behind the protocols of `pipeline.parts`. One file each; torch is imported late."""
