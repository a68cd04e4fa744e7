"""One evaluation: scenes, pictures, a judge, a folder."""
