"""The models of the pocket suite, without how they are trained."""
