"""Stages of build-dataset in workers: of a Ray cluster, or processes of this machine."""
