"""Objectives compared: a plan of cells, their trainings, contrasts, tables and pictures."""
