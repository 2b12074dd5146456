"""Picture files: reading, masks, crops around masked regions, and writing files atomically."""
