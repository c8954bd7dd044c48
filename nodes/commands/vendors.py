"""Models and their vendors, as mesh.yaml names them."""

import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from pydantic import SecretStr

from mesh.words import plain
from nodes.config import MeshConfig
from nodes.config import Vendor as VendorConfig
from nodes.em import Em
from nodes.errors import ConfigError, ModelRefused
from nodes.home import Home
from nodes.media import Media
from nodes.models.conduit import ECHO, Conduit, Vendor
from nodes.models.names import ModelName, is_provided
from nodes.prompt import Style
from nodes.speaker import Models


def models_of(home: Home, config: MeshConfig) -> tuple[Conduit, Models]:
    """The door to all models, and how each is spoken to."""
    vendors = {name: _vendor(home, config, name, vendor) for name, vendor in config.models.vendors.items()}

    def style(model: str) -> Style:
        name = ModelName.parse(model).name
        if name == ECHO:
            return "echo"
        for vendor in vendors.values():
            if vendor.has(name):
                return vendor.api
        return "chat"

    def sees(model: str) -> bool:
        name = ModelName.parse(model).name
        vendor = next((vendor for vendor in vendors.values() if vendor.has(name)), None)
        return name != ECHO and vendor is not None and vendor.sees(name)

    conduit = Conduit(config.models.default, vendors, model_calls=config.limits.model_calls)
    return conduit, Models(conduit, style, config.models.default, sees=sees, price=conduit.cost)


def model_problems(config: MeshConfig, ems: Iterable[Em]) -> list[str]:
    """A sentence for every model that some ems would speak with and that no vendor provides."""
    models = config.models
    wanted: dict[str, list[str]] = {models.default: []}
    for em in ems:
        wanted.setdefault(em.settings.model or models.default, []).append(em.name)
    problems: list[str] = []
    for model, users in wanted.items():
        try:
            name = ModelName.parse(model).name
        except ModelRefused as error:
            problems.append(str(error))
            continue
        if name == ECHO or any(is_provided(name, vendor.provides) for vendor in models.vendors.values()):
            continue
        whose = "the default model" if model == models.default else f"the model of {', '.join(sorted(users))}"
        problems.append(f"no vendor in mesh.yaml provides {plain(model)}, {whose}: whoever has it cannot answer")
    return problems


def key_problems(home: Home, config: MeshConfig) -> Iterable[str]:
    """A sentence for every vendor whose key is not where the settings say."""
    for name, vendor in config.models.vendors.items():
        try:
            vendor_key(home, config, name, vendor)
        except ConfigError as error:
            yield str(error)


def _vendor(home: Home, config: MeshConfig, name: str, vendor: VendorConfig) -> Vendor:
    prices = vendor.prices
    return Vendor(
        base_url=vendor.base_url,
        provides=vendor.provides,
        key=partial(vendor_key, home, config, name, vendor),
        api=vendor.api,
        timeout_s=vendor.timeout_s,
        concurrency=vendor.concurrency,
        price_in=prices.input if prices else None,
        price_out=prices.output if prices else None,
        images=vendor.images,
        fetch=Media(home.media).get,
    )


def vendor_key(home: Home, config: MeshConfig, name: str, vendor: VendorConfig) -> SecretStr | None:
    """Fetch a vendor's key when it is first needed. Raises ConfigError when it is not where the settings say."""
    where = f"{home.path / 'mesh.yaml'}: models.vendors.{name}"
    if vendor.api_key_env is not None:
        key = os.environ.get(vendor.api_key_env, "")
        if not key:
            raise ConfigError([f"{where}.api_key_env: the environment has no {vendor.api_key_env}; set it"])
        return SecretStr(key)
    if vendor.api_key_file is None:
        return None
    path: Path = config.resolve(home.path, vendor.api_key_file)
    try:
        return SecretStr(path.read_text("utf-8").strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{where}.api_key_file: {path} cannot be read: {error}"]) from None
