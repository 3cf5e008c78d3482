"""LaMP: a vision-language-action model that guides its actions by latent 3-D scene flow."""

__version__ = "0.1.0"
