"""The bundled sample: animated emoji with names and keywords in two languages; see README.md beside this file."""
