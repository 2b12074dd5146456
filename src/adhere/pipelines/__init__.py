"""Model families: diffusers pipelines as constrained pipelines, and how they are found and loaded."""
