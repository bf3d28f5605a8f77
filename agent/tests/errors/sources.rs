//! Sources that could not be heard.

use super::check_function;

#[test]
fn ports_and_frames_that_mean_nothing() {
    check_function(
        r#"
[source.port]
serial = { device = "/dev/ttyS0", baud = 0, data_bits = 9, stop_bits = 3, parity = "mark" }
[source.slow]
serial = { device = "/dev/ttyS0", baud = 0, data_bits = 9, stop_bits = 3 }
[source.endless]
serial = { device = "/dev/ttyS2", baud = 9600, frame = { start = [2] } }
[source.twice]
serial = { device = "/dev/ttyS3", baud = 9600, frame = { end = [3], pause = "0ms", start = [2] } }
[source.anywhere]
serial = { device = "/dev/ttyS4", frame = { bytes = 2, start = [1, 256] } }
[source.nowhere]
serial = { device = "/dev/ttyS0", baud = 9600, frame = { bytes = 2, start = [1, 2] } }
"#,
        r#"DIR/gateway.toml:9:84: source.port.serial.parity: `mark` is not known here
  hint: write `"none"`, `"even"` or `"odd"`
DIR/gateway.toml:11:21: source.slow.serial.device: `/dev/ttyS0` is the device of source `nowhere` already
  hint: let triggers name `nowhere`, and remove this one
DIR/gateway.toml:11:42: source.slow.serial.baud: nothing would ever come
  hint: write for example `baud = 9600`
DIR/gateway.toml:11:57: source.slow.serial.data_bits: a character of 9 bits is not between 5 and 8
  hint: write 8, or 7 for some older devices
DIR/gateway.toml:11:72: source.slow.serial.stop_bits: there are no 3 stop bits
  hint: write 1 or 2
DIR/gateway.toml:13:48: source.endless.serial.frame: nothing says where a frame ends
  hint: write `end = [3]`, `bytes = 32` or `pause = "20ms"`; without `frame` each line is an event
DIR/gateway.toml:15:48: source.twice.serial.frame: it has more than one end
  hint: keep one of `end`, `bytes` and `pause`
DIR/gateway.toml:15:77: source.twice.serial.frame.pause: no pause is so short
  hint: write for example `pause = "20ms"`
DIR/gateway.toml:15:92: source.twice.serial.frame.start: what follows a pause needs no start
  hint: remove it, or say by `end` or `bytes` where a frame ends
DIR/gateway.toml:17:1: source.anywhere.serial: `baud` is missing
  hint: add `baud = 9600`
DIR/gateway.toml:17:68: source.anywhere.serial.frame.start[1]: 256 is not between 0 and 255
  hint: write a number in that range
DIR/gateway.toml:19:48: source.nowhere.serial.frame: nothing tells where 2 bytes begin
  hint: add `start`, shorter than the frame: `start = [0x42, 0x4D]`
"#,
    );
}

#[test]
fn registers_that_mean_nothing() {
    check_function(
        r#"
[source.nothing]
modbus = { tcp = "plc", every = "1ms", timeout = "0s", at_once = 126 }
[source.both]
modbus = { tcp = "plc:502", rtu = { device = "/dev/ttyS0", baud = 9600 }, registers = [{ name = "a", input = 0 }] }
[source.plc.modbus]
rtu = { device = "/dev/ttyS1", baud = 0 }
at_once = 16
registers = [
    { name = "a", input = 0, type = "f32", scale = 0, deadband = -1 },
    { name = "a", holding = 65535, type = "u32" },
    { name = "b", coil = 0, type = "u16" },
    { name = "c", discrete = 0, unit = "V" },
    { name = "d", input = 0, type = "string" },
    { name = "e", input = 0, type = "string", length = 17 },
    { name = "f", input = 0, length = 2 },
    { name = "g", input = 0, coil = 1 },
    { name = "h", input = 70000, type = "word" },
    { input = 0 },
]
[source.wire]
serial = { device = "/dev/ttyS1", baud = 9600 }
"#,
        r#"DIR/gateway.toml:9:18: source.nothing.modbus.tcp: `plc` is not HOST:PORT
  hint: write for example `tcp = "192.168.1.20:502"`
DIR/gateway.toml:9:33: source.nothing.modbus.every: 1ms is shorter than 10ms
  hint: write for example `every = "1s"`
DIR/gateway.toml:9:50: source.nothing.modbus.timeout: nobody answers so soon
  hint: write for example `timeout = "1s"`
DIR/gateway.toml:9:66: source.nothing.modbus.at_once: 126 is not between 1 and 125
  hint: write how many the device allows, or remove it
DIR/gateway.toml:11:1: source.both.modbus: it has `tcp` and `rtu`, but must have exactly one
  hint: write one of `tcp` or `rtu`
DIR/gateway.toml:13:39: source.plc.modbus.rtu.baud: nothing would ever come
  hint: write for example `baud = 9600`
DIR/gateway.toml:16:52: source.plc.modbus.registers[a].scale: all values would be 0
  hint: write for example `scale = 0.1`
DIR/gateway.toml:16:66: source.plc.modbus.registers[a].deadband: it is less than nothing
  hint: write for example `deadband = 0.5`
DIR/gateway.toml:17:5: source.plc.modbus.registers[1]: `a` is already the name of another register
  hint: give each its own name
DIR/gateway.toml:17:29: source.plc.modbus.registers[1].holding: there are no 2 registers from 65535 on
  hint: write the address that the protocol has, from 0 to 65535
DIR/gateway.toml:18:36: source.plc.modbus.registers[b].type: a `coil` is one bit, which has no other type than `bool`
  hint: remove it, or name a `holding` or `input` register
DIR/gateway.toml:19:5: source.plc.modbus.registers[c]: it is no number
  hint: remove `scale`, `offset`, `unit` and `deadband`
DIR/gateway.toml:20:5: source.plc.modbus.registers[d]: nothing says how long the text is
  hint: write for example `length = 8`: registers of two characters each
DIR/gateway.toml:21:5: source.plc.modbus.registers[e]: it takes 17 registers, and one request reads 16
  hint: read it in parts
DIR/gateway.toml:22:39: source.plc.modbus.registers[f].length: its type says how long it is
  hint: remove it: only a `string` has a length of its own
DIR/gateway.toml:23:5: source.plc.modbus.registers[g]: it has `input` and `coil`, but must have exactly one
  hint: write one of `holding`, `input`, `coil` or `discrete`
DIR/gateway.toml:24:27: source.plc.modbus.registers[h].input: 70000 is not between 0 and 65535
  hint: write a number in that range
DIR/gateway.toml:24:41: source.plc.modbus.registers[h].type: `word` is not known here
  hint: write `"bool"`, `"u16"`, `"i16"`, `"u32"`, `"i32"`, `"u64"`, `"i64"`, `"f32"`, `"f64"` or `"string"`
DIR/gateway.toml:25:5: source.plc.modbus.registers[9]: `name` is missing
  hint: add `name = "pressure"`
DIR/gateway.toml:28:21: source.wire.serial.device: `/dev/ttyS1` is the device of source `plc` already
  hint: let triggers name `plc`, and remove this one
"#,
    );
    check_function(
        "\n[source.plc]\nmodbus = { tcp = \"plc:502\" }\n",
        r#"DIR/gateway.toml:9:1: source.plc.modbus: there is nothing to read
  hint: write for example `registers = [{ name = "pressure", input = 0 }]`
"#,
    );
}

#[test]
fn units_and_numbers_that_no_device_has() {
    check_function(
        r#"
[source.line.modbus]
rtu = { device = "/dev/ttyS0", baud = 9600 }
unit_id = 0
registers = [
    { name = "a", input = 0 },
    { name = "b", input = 1, unit_id = 248 },
    { name = "c", input = 2, unit_id = 247 },
]
[source.plc.modbus]
tcp = "plc:502"
unit_id = 0
registers = [
    { name = "a", input = 0, scale = nan },
    { name = "b", input = 1, offset = inf, deadband = -inf },
]
[source.heat]
sysfs = { preset = "hwmon", above = nan, below = -inf, hysteresis = nan }
[source.cell]
sysfs = { files = ["/sys/x"], scale = inf, offset = nan }
"#,
        r#"DIR/gateway.toml:12:5: source.line.modbus.registers[a].unit_id: 0 is the address of no device at a serial line
  hint: write the one of the device, from 1 to 247
DIR/gateway.toml:13:40: source.line.modbus.registers[b].unit_id: 248 is the address of no device at a serial line
  hint: write the one of the device, from 1 to 247
DIR/gateway.toml:20:38: source.plc.modbus.registers[a].scale: NaN is no number to reckon with
  hint: write a finite one
DIR/gateway.toml:21:39: source.plc.modbus.registers[b].offset: inf is no number to reckon with
  hint: write a finite one
DIR/gateway.toml:21:55: source.plc.modbus.registers[b].deadband: -inf is no number to reckon with
  hint: write a finite one
DIR/gateway.toml:24:37: source.heat.sysfs.above: NaN is no number to reckon with
  hint: write a finite one
DIR/gateway.toml:24:50: source.heat.sysfs.below: -inf is no number to reckon with
  hint: write a finite one
DIR/gateway.toml:24:69: source.heat.sysfs.hysteresis: NaN is no number to reckon with
  hint: write a finite one
DIR/gateway.toml:26:39: source.cell.sysfs.scale: inf is no number to reckon with
  hint: write a finite one
DIR/gateway.toml:26:53: source.cell.sysfs.offset: NaN is no number to reckon with
  hint: write a finite one
"#,
    );
}

#[test]
fn lines_that_mean_nothing() {
    check_function(
        r#"
[source.nothing]
gpio = { chip = "" }
[source.gate.gpio]
chip = "/dev/gpiochip0"
lines = [
    { name = "a", line = 0, initial = true, drive = "open-drain" },
    { name = "a", line = 0, direction = "out", edge = "both", debounce = "1ms" },
    { name = "b", line = "", debounce = "20ms" },
    { name = "c", line = -1, bias = "up" },
    { name = "d", line = true, direction = "out", initial = "on" },
    { line = 3, debounce = 5 },
    { name = "e", line = 4, debounce = "2h" },
]
"#,
        r#"DIR/gateway.toml:9:17: source.nothing.gpio.chip: nothing says which chip
  hint: write its device file, or its label: `gpiodetect` shows both
DIR/gateway.toml:13:29: source.gate.gpio.lines[a].initial: an input has no `initial`
  hint: remove it, or write `direction = "out"`
DIR/gateway.toml:13:45: source.gate.gpio.lines[a].drive: an input has no `drive`
  hint: remove it, or write `direction = "out"`
DIR/gateway.toml:14:5: source.gate.gpio.lines[1]: `a` is already the name of another line
  hint: give each its own name
DIR/gateway.toml:14:26: source.gate.gpio.lines[1].line: line 0 has a name already
  hint: keep one of the two
DIR/gateway.toml:14:48: source.gate.gpio.lines[1].edge: an output has no `edge`
  hint: remove it, or write `direction = "in"`
DIR/gateway.toml:14:63: source.gate.gpio.lines[1].debounce: an output has no `debounce`
  hint: remove it, or write `direction = "in"`
DIR/gateway.toml:15:26: source.gate.gpio.lines[b].line: `` is the name of no line: they have 1 to 31 bytes
  hint: write for example `17`
DIR/gateway.toml:16:26: source.gate.gpio.lines[c].line: -1 is not between 0 and 4294967295
  hint: write a number in that range
DIR/gateway.toml:16:37: source.gate.gpio.lines[c].bias: `up` is not known here
  hint: write `"pull-up"`, `"pull-down"` or `"disabled"`
DIR/gateway.toml:17:26: source.gate.gpio.lines[d].line: true is not the number of a line, or its name in quotes
  hint: write `line = 17`
DIR/gateway.toml:17:61: source.gate.gpio.lines[d].initial: `on` is not true, false or "keep"
  hint: write for example `false`
DIR/gateway.toml:18:5: source.gate.gpio.lines[5]: `name` is missing
  hint: add `name = "door"`
DIR/gateway.toml:18:28: source.gate.gpio.lines[5].debounce: the number 5 is not a duration with its unit, in quotes
  hint: write `debounce = "3s"`
DIR/gateway.toml:19:40: source.gate.gpio.lines[e].debounce: no contact bounces for 2h
  hint: write for example `debounce = "20ms"`
"#,
    );
    let many = |line: fn(u32) -> String| (0..65).map(line).collect::<Vec<_>>().join(", ");
    let same = many(|i| format!("{{ name = \"{i}\", line = {i} }}"));
    let unlike = many(|i| format!("{{ name = \"{i}\", line = {i}, debounce = \"{}ms\" }}", i.min(10) + 1));
    check_function(
        &format!(
            "\n[source.a]\ngpio = {{ chip = \"a\", lines = [{same}] }}\n[source.b]\ngpio = {{ chip = \"a\", lines = [{unlike}] }}\n"
        ),
        r#"DIR/gateway.toml:9:22: source.a.gpio.lines: 65 inputs are more than the 64 that can be heard together
  hint: put some of them into another source
DIR/gateway.toml:11:22: source.b.gpio.lines: 65 inputs are more than the 64 that can be heard together
  hint: put some of them into another source
DIR/gateway.toml:11:22: source.b.gpio.lines: its inputs differ in 11 ways, more than the 10 that can be heard together
  hint: put those that are alike into a source of their own
"#,
    );
}
