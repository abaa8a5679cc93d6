"""The bundled sample: animated emoji with English and Chinese texts, and pairs with computed grades."""
