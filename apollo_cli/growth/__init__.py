"""Apollo (arXiv 2401.09192) as pure code: stages, depth sampling, layer maps, growth, and the plan."""
