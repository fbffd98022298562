"""`fleet doctor`: facts are read by small shells, and judged by functions that read nothing."""
