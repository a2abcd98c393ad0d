"""The page at `/`: one static file, nothing loaded from elsewhere."""

from pathlib import Path

PAGE = Path(__file__).with_name("index.html")
