"""The HTTP face: OpenAI shapes in, runs of the runtime's client, OpenAI shapes and streams out."""
