"""From a file or the hub to the rows of a cell. No torch here."""
