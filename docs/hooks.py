"""What `mkdocs build` does beside reading docs/: the repository's pages, agents, results, the API.

Every page lies on the site where it lies in the repository, so that a link between two of them
works in both places.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, Any

import agent_pages  # beside this file, where mkdocs looks while it reads it
import result_pages
from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig

ROOT = Path(__file__).resolve().parents[1]

OWN = ["docs/*.md", "docs/*/*.md", "docs/*.css", "docs/figures/*.png"]
PAGES = ["*.md", "agents/README.md", "envs_jax/README.md", "experiments/README.md"]
RESULTS = ["experiments/results/README.md", "experiments/results/**/*.png"]
# Packages of which every public module has a page, and modules that have one besides.
PACKAGES = ["jaxrl/parts", "jaxrl/loops", "jaxrl/report", "envs_jax"]
MODULES = ["jaxrl/agent", "jaxrl/spaces", "jaxrl/training/sinks", "jaxrl/training/hosts"]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put agents, by family, and the API's modules into the navigation."""
    nav: list[dict[str, Any]] = config.nav or []
    for entry in nav:
        if "Agents" in entry:
            families = agent_pages.families()
            entry["Agents"] = [
                {family: [f"docs/agents/{name}.md" for name in names]}
                for family, names in families.items()
            ]
        if "API" in entry:
            packages: dict[str, list[Any]] = {}
            for module in modules():
                package = module.rpartition(".")[0] or module
                packages.setdefault(package, []).append({module: f"docs/api/{module}.md"})
            entry["API"] = [{package: pages} for package, pages in packages.items()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """All pages of the site by their paths in the repository."""
    docs = str(ROOT / "docs")
    found = Files([file for file in files if not (file.abs_src_path or "").startswith(docs)])
    for pattern in [*OWN, *PAGES, *RESULTS]:
        for path in sorted(ROOT.glob(pattern)):
            uri = path.relative_to(ROOT).as_posix()
            found.append(File.generated(config, uri, abs_src_path=str(path)))
    for name, text in agent_pages.pages().items():
        found.append(File.generated(config, f"docs/agents/{name}.md", content=text))
    for name, text in result_pages.pages().items():
        found.append(File.generated(config, f"docs/results/{name}.md", content=text))
    for module in modules():
        found.append(File.generated(config, f"docs/api/{module}.md", content=api_page(module)))
    return found


def modules() -> list[str]:
    """The modules of the API, `jaxrl` itself first."""
    found = ["jaxrl", *[path.replace("/", ".") for path in MODULES], "envs_jax"]
    for package in PACKAGES:
        paths = sorted((ROOT / package).glob("[!_]*.py"))
        found += [f"{package.replace('/', '.')}.{path.stem}" for path in paths]
    return found


def api_page(module: str) -> str:
    """A page that mkdocstrings fills; of a package, with what it exports."""
    lines = [f"# {module}", "", f"::: {module}", "    options:", "      show_root_heading: false"]
    exported = names_exported(module)
    if exported:
        lines += ["      members:", *[f"        - {name}" for name in exported]]
    return "\n".join(lines) + "\n"


def names_exported(module: str) -> list[str]:
    """The names in a package's `__all__`; none where it has none."""
    path = ROOT / module.replace(".", "/") / "__init__.py"
    if not path.exists():
        return []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []
