"""Views of a run: terminal, JUnit, HTML, Markdown, figures.

Views compute no measurement and decide nothing.
"""
