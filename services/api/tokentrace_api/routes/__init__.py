"""The HTTP routes of the api, one file for each subject."""
