"""Energy and emissions of device-hours: the one formula for what ran (the warehouse) and for what is planned. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

# arXiv 2302.13971 §6: power usage effectiveness, and kg CO2e a kWh of the mean US grid. They reproduce table 2 of arXiv 2307.09288.
PUE = 1.1
KG_CO2E_PER_KWH = 0.385


@dataclass(frozen=True)
class Emissions:
    """Energy (kWh) with the data centre's overhead, and the tonnes of CO2e of it. Manufacture and network are left out."""

    kwh: float
    tco2e: float


def emissions(device_hours: float, watts: float) -> Emissions:
    """device-hours (hours x devices) x watts a device x PUE, and its emissions: the formula of arXiv 2302.13971 §6."""
    kwh = device_hours * watts * PUE / 1000
    return Emissions(kwh, kwh * KG_CO2E_PER_KWH / 1000)
