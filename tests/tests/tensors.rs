//! Tensors of every dtype, rank and size cross the regions whole, with every client on both backings.

use inferd_tests::answer::{fill, hex};
use inferd_tests::{Model, ms, scenarios};

const DTYPES: [(&str, usize); 13] = [
    ("f32", 4),
    ("f64", 8),
    ("f16", 2),
    ("bf16", 2),
    ("i8", 1),
    ("i16", 2),
    ("i32", 4),
    ("i64", 8),
    ("u8", 1),
    ("u16", 2),
    ("u32", 4),
    ("u64", 8),
    ("bool", 1),
];
const SHAPES: [&[u64]; 4] = [&[], &[7], &[3, 5], &[1, 2, 1, 3, 1, 2, 1, 2]];

fn bools(elements: usize) -> Vec<u8> {
    (0..elements).map(|i| (i % 3 == 0) as u8).collect()
}

scenarios! {
    fn every_dtype_and_rank_comes_back_as_it_went(case) {
        for shape in SHAPES {
            let mut model = Model::bare("m");
            for (dtype, _) in DTYPES {
                model = model.input(&format!("in_{dtype}"), dtype, shape).output(&format!("out_{dtype}"), dtype, shape);
            }
            let daemon = case.config().model(model).start();
            let mut robot = case.attached(&daemon, "model=m");
            let signature = robot.ok("signature").json;
            let elements = shape.iter().product::<u64>() as usize;
            // A bool is 0 or 1, and anything else is rejected.
            robot.exchange("fill=1000").expect("rejected");
            robot.ok("request");
            for k in 0..12 {
                robot.ok(&format!("write input={k} fill={}", 1000 + k));
            }
            robot.ok(&format!("write input=12 hex={}", hex(&bools(elements))));
            let ticket = robot.ok("submit").number("ticket");
            let reply = robot.wait(ticket).expect("ok");
            for (k, (dtype, size)) in DTYPES.iter().enumerate() {
                let tensor = &signature["inputs"][k];
                assert_eq!((tensor["dtype"].as_str(), &tensor["shape"]), (Some(*dtype), &serde_json::json!(shape)));
                let sent = fill(1000 + k as u64, elements * size);
                let sent = if *dtype == "bool" { bools(elements) } else { sent };
                assert_eq!(reply.output(k), sent, "{dtype} {shape:?}");
            }
        }
    }

    fn a_vga_image_crosses_whole_while_it_is_overwritten_and_reloaded(case) {
        let model = Model::bare("vga").input("image", "u8", &[480, 640, 3]).output("copy", "u8", &[480, 640, 3]);
        let daemon = case.config().model(model.queue(4, "latest")).start();
        let mut robot = case.attached(&daemon, "model=vga");
        robot.begin("loop seconds=1.5 depth=3 check=echo");
        (0..4).for_each(|_| drop(daemon.reload("vga").expect("reloaded")));
        let summary = robot.finish(ms(20_000)).clean();
        assert!(summary.count("ok") > 20, "{}", summary.json);
        assert_eq!(summary.count("ok") + summary.count("superseded"), summary.number("sent"));
    }

    fn many_inputs_and_outputs_of_different_lengths_keep_their_places(case) {
        let mut model = Model::bare("m");
        for k in 0..32 {
            model = model.input(&format!("in{k}"), "u8", &[k + 1]).output(&format!("out{k}"), "u8", &[k + 1]);
        }
        let daemon = case.config().model(model).start();
        let mut robot = case.attached(&daemon, "model=m");
        for seed in [1, 500] {
            let reply = robot.ok(&format!("infer fill={seed}")).expect("ok");
            (0..32).for_each(|k| assert_eq!(reply.output(k), fill(seed + k as u64, k + 1), "output {k}"));
        }
    }
}
