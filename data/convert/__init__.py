"""Competition files, tables and clips in; an Arrow data set folder out."""
