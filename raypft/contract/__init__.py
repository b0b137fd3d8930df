"""What every method promises, as functions: `raypft contract` runs them on a user's own method, the tests on all."""
