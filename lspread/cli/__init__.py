"""Commands: argv and YAML come in, an exit code goes out."""
