from raypft.backbones.base import Backbone as PromptTokenizer  # noqa
