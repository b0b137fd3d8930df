"""What rows mean, how to ask about them, how answers are scored."""
