"""The things of the cold store: a machine that speaks Modbus, doors that speak MQTT, and somebody who brings goods."""

import asyncio
import itertools
import json
import random
import sys
from pathlib import Path

import paho.mqtt.client as mqtt
from pymodbus.datastore import ModbusDeviceContext, ModbusSequentialDataBlock, ModbusServerContext
from pymodbus.server import ModbusTcpServer

OUTSIDE_CELSIUS = 18.0
DOORS = ["north", "south"]
ARTICLES = ["fish", "peas", "spinach", "ice cream"]


class Store:
    """Warms up through its walls and open doors; the machine cools between two temperatures."""

    def __init__(self):
        self.celsius = -18.0
        self.cooling = False
        self.open = set()

    def second(self):
        self.celsius += (OUTSIDE_CELSIUS - self.celsius) * (0.002 + 0.02 * len(self.open))
        if self.cooling:
            self.celsius -= 0.6
        self.cooling = self.celsius > (-20.0 if self.cooling else -18.0)
        return [round(self.celsius * 10) & 0xFFFF, 830 if self.cooling else 40]


async def machine(store, port):
    registers = ModbusSequentialDataBlock(1, [0, 0])
    inputs = ModbusSequentialDataBlock(1, [0])
    device = ModbusDeviceContext(ir=registers, di=inputs)
    server = ModbusTcpServer(ModbusServerContext(devices=device, single=True), address=("127.0.0.1", port))
    serving = asyncio.create_task(server.serve_forever())
    while not serving.done():
        registers.setValues(1, store.second())
        inputs.setValues(1, [store.cooling])
        await asyncio.sleep(1)
    await serving


async def doors(store, port):
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="doors")
    client.connect_async("127.0.0.1", port)
    client.loop_start()

    def tell(door):
        client.publish(f"doors/{door}", json.dumps({"open": door in store.open}), qos=1)

    while True:
        await asyncio.sleep(random.uniform(2, 6))
        door = random.choice(DOORS)
        store.open.add(door)
        tell(door)
        # Now and then somebody forgets to close it.
        await asyncio.sleep(random.choice([2, 3, 4, 20]))
        store.open.discard(door)
        tell(door)


async def deliveries(folder):
    folder.mkdir(exist_ok=True)
    for n in itertools.count(1):
        await asyncio.sleep(random.uniform(4, 12))
        lines = [f"{article},{random.randint(1, 8)}\n" for article in random.sample(ARTICLES, 2)]
        (folder / f"{n}.csv").write_text("".join(lines), encoding="utf-8")


async def main(folder, mqtt_port, modbus_port):
    store = Store()
    await asyncio.gather(machine(store, modbus_port), doors(store, mqtt_port), deliveries(folder))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
