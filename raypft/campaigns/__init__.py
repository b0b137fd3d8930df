"""A paper's table or a search: many jobs, and what is known of their cells."""
