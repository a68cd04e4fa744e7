"""The pocket suite: an embedded world, its models and the recipes that train them."""
