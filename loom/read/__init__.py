"""Read: the chapters that `_toc.yml` lists, their cells, blocks and labels."""
