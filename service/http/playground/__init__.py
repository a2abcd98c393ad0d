"""The pages at `/` and `/docs`: static files, nothing loaded from elsewhere."""

from pathlib import Path

PAGE = Path(__file__).with_name("index.html")
DOCS_PAGE = Path(__file__).with_name("docs.html")
DOCS_START = Path(__file__).with_name("docs.js")
