"""From folders of pictures to subjects with masks in a root, and the register of them."""
