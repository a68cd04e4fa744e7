"""The first edition of the pocket suite: what the embedded suite runs on until the weights of the
second edition, which stands beside this folder, are all there. It goes as a whole then."""
