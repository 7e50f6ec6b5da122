"""Search learning rate, batch size, image size or any other field of a recipe, with early stopping, on Ray Tune."""
