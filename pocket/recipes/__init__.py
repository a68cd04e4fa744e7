"""How each pocket model is trained; `focusdpo pocket train NAME` runs one."""
