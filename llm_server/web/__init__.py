"""The page at /ui and what serves it: plain files, and the rendering of Markdown."""
