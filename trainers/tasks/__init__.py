"""What is learned: the loss, the counts gathered from the workers, and the scores made of them."""
