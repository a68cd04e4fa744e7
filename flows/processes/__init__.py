"""Work shared out over processes of this machine, one a card."""
