"""The HTTP side of the api, one file for each subject."""
