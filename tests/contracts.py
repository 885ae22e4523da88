"""The contract on imports that is ours: a room's face is for those outside."""

import grimp
from importlinter.application import output
from importlinter.domain.contract import Contract, ContractCheck


class FacesContract(Contract):
    """No module imports a package that it lies in.

    The face of a room hands on what is behind it, so a sibling that imports it has made a cycle,
    and a lazy face hides that until it is used.
    """

    type_name = "faces"

    def check(self, graph: grimp.ImportGraph, verbose: bool) -> ContractCheck:
        """Finds such imports."""
        found = [
            (importer, imported)
            for importer in sorted(graph.modules)
            for imported in sorted(graph.find_modules_directly_imported_by(importer))
            if importer.startswith(f"{imported}.")
        ]
        return ContractCheck(kept=not found, metadata={"found": found})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Says which."""
        found: list[tuple[str, str]] = check.metadata["found"]
        for importer, imported in found:
            output.print_error(f"{importer} imports {imported}: import the sibling it needs")
