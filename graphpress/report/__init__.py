"""What a compilation did, as data, tables and pages."""
