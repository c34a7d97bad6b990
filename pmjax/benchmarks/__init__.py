"""Parts of `pmjax.bench`: ahead-of-time compilation, TPU data, and peers in other frameworks."""
