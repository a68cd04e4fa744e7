"""At which noise level a picture's subjects are decided."""
