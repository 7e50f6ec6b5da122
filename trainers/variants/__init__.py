"""A trained model in other forms, smaller and faster: made, compared, and the best one chosen."""
