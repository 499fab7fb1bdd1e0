"""The image and the Compose file, tried for real: a web service, its sidecar, and an S3 server in containers."""
