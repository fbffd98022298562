"""From a recipe to a published artefact."""
