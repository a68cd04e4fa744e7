"""A module per page of the studio: its entries of the navigation and its routes."""
