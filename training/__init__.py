"""How the demo model is made: data, tokenizer, training, export, measurement.

Nothing here is needed to run the server. README.md in this folder has the commands.
"""
