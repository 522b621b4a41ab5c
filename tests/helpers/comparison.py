"""Evidences by hand."""


def by_name(made):
    return {model.name: model for model in made.models}
