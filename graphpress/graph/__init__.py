"""Reading and changing graphs: edit, cut, verify, print, rewrite."""
