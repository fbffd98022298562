"""What a device or an application imports: submit, wait, stream and cancel jobs."""
